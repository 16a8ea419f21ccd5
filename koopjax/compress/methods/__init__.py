"""The methods, and the registry of them all."""
