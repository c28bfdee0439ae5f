"""Classifies pictures with MediaPipe, which takes normalization and labels from the metadata."""

import json

import numpy as np
from answering import answer


def run(samples, settings, log):
    import mediapipe
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.ImageClassifierOptions(
        base_options=BaseOptions(model_asset_path="model.tflite")
    )
    outputs, labels = [], {}
    with vision.ImageClassifier.create_from_options(options) as classifier:
        for (pixels,) in samples:
            image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels[0])
            found = classifier.classify(image).classifications[0].categories
            scores = np.full(settings["classes"], np.nan)
            for category in found:
                scores[category.index] = category.score
                labels[category.index] = category.category_name
            outputs.append([scores])
    return outputs, {"labels": json.dumps(labels)}


if __name__ == "__main__":
    answer(run)
