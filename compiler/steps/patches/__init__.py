"""Pictures as patches, and back."""
