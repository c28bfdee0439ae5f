"""Android Studio projects around a .tflite file; `project.android_project` makes them."""
