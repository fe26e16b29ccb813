/* Asks for input over the unix socket named by its argument, as often as its second argument says. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char buffer[4096];
    ssize_t got;

    if (argc != 3)
        return 64;
    strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
    for (int left = atoi(argv[2]); left > 0; left--) {
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
            perror("ask");
            return 1;
        }
        fputs("answer: <", stdout);
        while ((got = read(fd, buffer, sizeof buffer)) > 0)
            fwrite(buffer, 1, (size_t)got, stdout);
        fputs(">\n", stdout);
        close(fd);
    }
    return 0;
}
