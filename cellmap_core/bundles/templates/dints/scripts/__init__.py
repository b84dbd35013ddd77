"""What Auto3DSeg calls: algo, train, infer."""
