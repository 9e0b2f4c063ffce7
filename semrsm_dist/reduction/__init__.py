"""What is read from RSMs: σ of the RBF kernel, retrieval, CKA. Sums run in a fixed order, in bounded memory."""
