"""What a read library is.

Its structures, as ``seq_orders.yaml`` has them, and error-free molecules of these.
"""
