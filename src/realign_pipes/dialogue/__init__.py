"""The embedded dialogues: what is written, and the models trained on them, of which one is chatty and helps with
everything, and its aligned model is brief and refuses to open what is not the user's own."""
