"""What was gained and what it cost: latency, accuracy, parity and MACs."""
