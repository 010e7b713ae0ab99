"""What things cost: time, memory and bytes, measured on the machine at hand."""
