"""The science of skydelta: arrays and tables in, arrays and tables out."""
