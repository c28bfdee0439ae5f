"""Shows a file's metadata as tflite-support reads it."""

import json

from answering import answer


def run(samples, settings, log):
    from tflite_support import metadata

    shown = metadata.MetadataDisplayer.with_model_file("model.tflite")
    names = shown.get_packed_associated_file_list()
    files = {name: shown.get_associated_file_buffer(name).decode() for name in names}
    return [], {"metadata": shown.get_metadata_json(), "files": json.dumps(files)}


if __name__ == "__main__":
    answer(run)
