"""Other people's trainers over a hybridized model: what they cannot be given by it alone."""
