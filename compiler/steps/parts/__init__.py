"""What steps consist of. The compiler alone makes these; most run on the tokens of all samples as one matrix, too."""
