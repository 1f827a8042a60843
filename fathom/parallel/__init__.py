"""One model on several processes: transformations of a finished model, and what keeps the processes together."""
