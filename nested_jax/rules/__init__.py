"""Update rules: what is done with a gradient, as optax transformations."""
