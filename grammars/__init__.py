"""How the language is written. The grammar is read through `importlib.resources.files("crate_dsl.grammars")`."""
