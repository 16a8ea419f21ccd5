"""Methods, budgets and seeds held against each other."""
