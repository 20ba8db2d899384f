"""Arrays and tensors in, arrays and tensors out: no files, no configuration, no global chance."""
