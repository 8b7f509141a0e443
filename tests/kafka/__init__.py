"""A real Apache Kafka for the tests: found, or started here from Maven's jars."""
