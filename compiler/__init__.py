"""The compiler: from the syntax tree to a running network. Installed and imported as `crate_dsl.compiler`."""
