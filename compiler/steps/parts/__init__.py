"""What steps consist of. The compiler alone makes these; each runs on tokens of all samples as rows of one matrix, too."""
