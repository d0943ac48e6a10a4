"""Commands that compare a part of Twotower with a peer, in one run on one machine."""
