"""Examples on their way from JSON files to tokens: their shapes, prompts and labels, and which client has which."""
