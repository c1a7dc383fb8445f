"""What a network's layers do to images: measured step by step, and shown on one page."""
