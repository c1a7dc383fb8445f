"""Random steps: what training hides, cuts out and changes, anew each time."""
