"""The time, memory and cost of a training, estimated from the network's layers and the hardware's figures."""
