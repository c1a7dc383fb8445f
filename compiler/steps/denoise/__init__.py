"""The posterior mean of tokens drawn near learned subspaces."""
