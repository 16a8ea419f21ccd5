"""One file a method, and the registry of them all."""
