"""Networks: encoders, decoders, and the transfer of weights between them."""
