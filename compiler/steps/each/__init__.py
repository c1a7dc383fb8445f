"""`each { … }`: a body on every item of a leading axis. Items become samples, and samples become items again."""
