"""The layers that training wraps around those of the user."""
