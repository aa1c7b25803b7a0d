"""Label every base of a long RNA-seq read: adapters, barcode, UMI, poly-A or poly-T tail, cDNA.

Reads with known labels are simulated from a protocol (``seq_orders.yaml``), a convolutional network with a
conditional random field learns them, and the labels become segments, validity and barcodes (TensorFlow, Keras 3).
"""
