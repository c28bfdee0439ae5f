"""kyolo: YOLOv8 (width 0.125)."""

BATCH = 4


def build():
    from kyolo.models.yolov8 import yolov8_model as m

    m.YOLOV8_CONFIG["t"] = (0.33, 0.125, 512)
    return m.build_yolov8("t", nc=5, input_shape=(64, 64, 3))
