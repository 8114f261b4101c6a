"""How a rule runs over time: structure, response, dual form, engine."""
