"""What travels, whatever the method: codecs, the cut of an update, and feedback, which keeps what was not sent."""
