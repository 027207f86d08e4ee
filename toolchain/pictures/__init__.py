"""Pictures: from a file, an array, a video or a camera to the model's input tensor.

Rules of this room: numpy and Pillow, OpenCV only for videos and cameras and only when one is
opened. Training and devices share ``preprocess``, so both see the same pixels. Nothing here knows
a model.
"""
