"""What a Gram matrix answers: which entries can go, what the rest becomes, how to round it."""
