// Started by krunner in place of the user's class: System.in asks the user through the runner.
// Compiled together with the code, by whichever javac is there, so nothing newer than Java 8 is named here.

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.lang.reflect.Constructor;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.net.SocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.SocketChannel;
import java.util.Arrays;

public final class KrunnerMain {
    /** The arguments: the input socket, and the class to run. */
    public static void main(String[] arguments) throws Throwable {
        System.setIn(new Asking(arguments[0]));
        Method main = find(arguments[1]);
        try {
            Object object = null;
            if (!Modifier.isStatic(main.getModifiers())) {
                Constructor<?> constructor = main.getDeclaringClass().getDeclaredConstructor();
                constructor.setAccessible(true);
                object = constructor.newInstance();
            }
            main.setAccessible(true);
            main.invoke(object, main.getParameterCount() == 0 ? new Object[0] : new Object[] {new String[0]});
        } catch (InvocationTargetException failure) {
            Throwable cause = failure.getCause();
            for (Throwable link = cause; link != null; link = link.getCause()) {
                link.setStackTrace(ownPart(link.getStackTrace()));
            }
            throw cause;
        }
    }

    private static Method find(String name) {
        try {
            for (Class<?> type = Class.forName(name); type != null; type = type.getSuperclass()) {
                for (Class<?>[] parameters : new Class<?>[][] {{String[].class}, {}}) {
                    try {
                        return type.getDeclaredMethod("main", parameters);
                    } catch (NoSuchMethodException none) {
                        // Perhaps the next.
                    }
                }
            }
            System.err.println("error: no main method in class " + name
                    + "; define it as: public static void main(String[] args)");
        } catch (ClassNotFoundException none) {
            System.err.println("error: no class " + name + "; put the main method into a public class");
        }
        System.exit(1);
        return null;
    }

    /** Without the calls that led to the user's main method. */
    private static StackTraceElement[] ownPart(StackTraceElement[] trace) {
        int end = trace.length;
        while (end > 0 && isOurs(trace[end - 1].getClassName())) {
            end--;
        }
        return Arrays.copyOf(trace, end);
    }

    private static boolean isOurs(String name) {
        return name.equals("KrunnerMain") || name.startsWith("java.lang.reflect.")
                || name.startsWith("jdk.internal.reflect.") || name.startsWith("sun.reflect.");
    }

    /** A line of input for each time that more is wanted than is there. */
    private static final class Asking extends InputStream {
        private final String socket;
        private byte[] text = new byte[0];
        private int next = 0;

        Asking(String socket) {
            this.socket = socket;
        }

        @Override
        public synchronized int available() {
            return text.length - next;
        }

        @Override
        public synchronized int read() {
            return hasMore() ? text[next++] & 0xff : -1;
        }

        @Override
        public synchronized int read(byte[] target, int offset, int length) {
            if (length == 0) {
                return 0;
            }
            if (!hasMore()) {
                return -1;
            }
            int count = Math.min(length, available());
            System.arraycopy(text, next, target, offset, count);
            next += count;
            return count;
        }

        private boolean hasMore() {
            if (available() == 0) {
                System.out.flush();
                try {
                    text = ask();
                    next = 0;
                } catch (IOException | ReflectiveOperationException failure) {
                    Throwable cause = failure instanceof InvocationTargetException ? failure.getCause() : failure;
                    System.err.println("<user-input-unavailable> " + (cause instanceof ClassNotFoundException
                            ? "it takes Java 16 or later" : socket + ": " + cause.getMessage()));
                }
            }
            return available() > 0;
        }

        private byte[] ask() throws IOException, ReflectiveOperationException {
            Class<?> type = Class.forName("java.net.UnixDomainSocketAddress");
            SocketAddress address = (SocketAddress) type.getMethod("of", String.class).invoke(null, socket);
            ByteArrayOutputStream answer = new ByteArrayOutputStream();
            try (SocketChannel channel = SocketChannel.open(address)) {
                ByteBuffer piece = ByteBuffer.allocate(65536);
                while (channel.read(piece) >= 0) {
                    answer.write(piece.array(), 0, piece.position());
                    piece.clear();
                }
            }
            byte[] line = answer.toByteArray();
            if (line.length == 0 || line[line.length - 1] != '\n') {
                answer.write('\n');
            }
            return answer.toByteArray();
        }
    }
}
