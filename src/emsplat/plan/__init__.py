"""What a reconstruction will take: time, memory and disk of every stage, from rates measured on the spot."""
