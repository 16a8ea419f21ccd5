"""The linear layers of a network, and how a budget divides over them."""
