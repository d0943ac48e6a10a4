"""Commands that measure a part of Twotower, and a peer in the same run where there is one."""
