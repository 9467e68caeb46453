"""How heads make a second stage."""
