"""What RoI heads are made of: each file one head, its network, targets, loss and decoding together."""
