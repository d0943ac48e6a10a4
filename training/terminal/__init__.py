"""The terminal of a training: a live line or plain lines while it runs, and where everything is at its end."""
