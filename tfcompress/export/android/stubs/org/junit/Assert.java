package org.junit;

public class Assert {
    public static void assertTrue(String message, boolean condition) {}

    public static void assertEquals(long expected, long actual) {}

    public static void assertEquals(Object expected, Object actual) {}
}
