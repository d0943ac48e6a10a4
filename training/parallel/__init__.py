"""The `data` x `model` mesh: layouts, links between devices and gradient averaging."""
