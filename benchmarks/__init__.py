"""Commands that measure a part of Twotower, beside a peer in the same run where there is one."""
