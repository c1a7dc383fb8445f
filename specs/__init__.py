"""Networks worth having, one family a file. They are read through `importlib.resources.files("crate_dsl.specs")`."""
