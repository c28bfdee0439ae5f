"""Small models that other packages build, with random weights and data for them."""
