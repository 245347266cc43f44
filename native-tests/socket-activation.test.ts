/**
 * Goal: whoever speaks systemd's protocol of socket activation can start Cowbell: libnbd's tools and its Python
 * binding, systemd's own `systemd-socket-activate`, and a parent that hands over several sockets of both
 * kinds. Sockets that were handed over are served, told to no child, and left to whoever bound them.
 *
 * Method: `cowbell serve` started by each of these. The parent of several sockets is a Python script that
 * binds, sets the variables and becomes `cowbell`, since the process id is part of the protocol.
 */
import { readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import {
  cowbell,
  freePort,
  must,
  mustCowbell,
  ROOT,
  run,
  Running,
  temporaryDirectory,
} from './support/process.ts';
import { findTool, requireTools, type Skippable, skipOrFail } from './support/tools.ts';

const PYTHON = '/usr/bin/python3'; // Debian's own, for which python3-libnbd is made
const COWBELL = ['env', '-u', 'NODE_OPTIONS', process.execPath, join(ROOT, 'bin/cowbell.cjs')];

/** Hands over what is named by the arguments before `--`, and becomes the command after it. */
const PARENT = `
import os, socket, sys
dashes = sys.argv.index('--')
wanted, command = sys.argv[1:dashes], sys.argv[dashes + 1:]
names, sockets = [], []
for word in wanted:
    kind, _, rest = word.partition(':')
    name, _, place = rest.partition('@')
    if kind == 'unix':
        s = socket.socket(socket.AF_UNIX); s.bind(place); s.listen()
    elif kind == 'tcp':
        s = socket.socket(socket.AF_INET); s.bind(('127.0.0.1', int(place))); s.listen()
    elif kind == 'udp':
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0))
    elif kind == 'unbound':
        s = socket.socket(socket.AF_INET)
    elif kind == 'pipe':
        s = os.fdopen(os.pipe()[0])
    names.append(name); sockets.append(s)
# Out of the way of the descriptors that are promised.
high = [os.dup2(s.fileno(), 100 + i) for i, s in enumerate(sockets)]
for i, d in enumerate(high):
    os.dup2(d, 3 + i)
os.closerange(3 + len(high), 200)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(high)), LISTEN_FDNAMES=':'.join(names))
os.execvp(command[0], command)
`;

async function makeVolumes(t: { teardown(remove: () => void): void }, names: readonly string[]) {
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  for (const name of names) await mustCowbell(['volume', 'create', at(name), '--size', '4M']);
  return at;
}

async function hasPython(t: Skippable): Promise<boolean> {
  const has = (await run(PYTHON, ['-c', 'import nbd'])).status === 0;
  if (!has) skipOrFail(t, 'missing the Python module nbd (Debian package python3-libnbd)');
  return has;
}

t.test('libnbd starts a server for each client', async (t) => {
  if (!requireTools(t, ['nbdinfo', 'nbdcopy', 'qemu-img'])) return;
  const at = await makeVolumes(t, ['vol']);
  const server = ['[', ...COWBELL, 'serve', at('vol'), ']'];
  t.match(await must('nbdinfo', ['--size', '--', ...server]), /^4194304$/m);
  await must('qemu-img', ['create', '-q', '-f', 'raw', at('source.raw'), '4M']);
  await must('qemu-io', ['-f', 'raw', '-c', 'write -P 7 1M 2M', at('source.raw')]);
  await must('nbdcopy', ['--flush', '--', at('source.raw'), ...server]);
  await must('nbdcopy', ['--', ...server, at('copy.raw')]);
  await must('cmp', [at('source.raw'), at('copy.raw')]);

  if (!(await hasPython(t))) return;
  const script = `
import nbd, sys
h = nbd.NBD()
h.connect_systemd_socket_activation(sys.argv[1:])
h.pwrite(b'x' * 512, 512, nbd.CMD_FLAG_FUA)
print(bytes(h.pread(1024, 0)[511:513]), h.get_size())
h.shutdown()
`;
  const printed = await must(PYTHON, ['-c', script, ...COWBELL, 'serve', at('vol')]);
  t.match(printed, /^b'\\x00x' 4194304$/m);
});

t.test('systemd starts a server at the first connection', async (t) => {
  if (!requireTools(t, ['nbdinfo'])) return;
  if (findTool('systemd-socket-activate') === undefined) {
    t.pass('not run', { skip: 'missing systemd-socket-activate (Debian package systemd)' });
    return;
  }
  const at = await makeVolumes(t, ['a', 'b']);
  const port = await freePort();
  const words = ['-l', at('all.sock'), '-l', `127.0.0.1:${port}`, '--fdname=all:nbd=b'];
  const activated = new Running('systemd-socket-activate', [...words, ...COWBELL, 'serve', at('a'), at('b')]);
  t.teardown(async () => {
    if (activated.ended === undefined) await activated.stop('SIGKILL');
  });
  // It listens before it says so; this line is on standard error, hence the first client tries again.
  let listed = await run('nbdinfo', ['--list', `nbd+unix:///?socket=${at('all.sock')}`]);
  while (listed.status !== 0 && activated.ended === undefined) {
    listed = await run('nbdinfo', ['--list', `nbd+unix:///?socket=${at('all.sock')}`]);
  }
  t.match(listed.stdout, /export="a"[^]*export="b"/);
  const restricted = await must('nbdinfo', ['--list', `nbd://127.0.0.1:${port}`]);
  t.match(restricted, /export="b"/);
  t.notMatch(restricted, /export="a"/);
  t.equal((await activated.stop('SIGTERM')).status, 0);
});

t.test('several sockets are handed over, beside those that are bound as ever', async (t) => {
  if (!requireTools(t, ['nbdinfo', 'qemu-io'])) return;
  const at = await makeVolumes(t, ['a', 'b']);
  const [port, own] = [await freePort(), await freePort()];
  const sockets = [`unix:x@${at('handed.sock')}`, `tcp:@${port}`, `unix:nbd=b@${at('only-b.sock')}`];
  const words = ['serve', at('a'), at('b'), '--listen', `127.0.0.1:${own}=a`];
  const server = new Running(PYTHON, ['-c', PARENT, ...sockets, '--', ...COWBELL, ...words]);
  t.teardown(async () => {
    if (server.ended === undefined) await server.stop('SIGKILL');
  });
  await server.waitForLine(/only-b\.sock$/);
  t.strictSame(server.stdout.trim().split('\n'), [
    `ready nbd+unix:///a?socket=${at('a/nbd.sock')}`,
    `ready nbd+unix:///b?socket=${at('b/nbd.sock')}`,
    `ready nbd://127.0.0.1:${own}/a`,
    `ready nbd+unix:///a?socket=${at('handed.sock')}`,
    `ready nbd+unix:///b?socket=${at('handed.sock')}`,
    `ready nbd://127.0.0.1:${port}/a`,
    `ready nbd://127.0.0.1:${port}/b`,
    `ready nbd+unix:///b?socket=${at('only-b.sock')}`,
  ]);
  for (const line of server.stdout.trim().split('\n')) await must('nbdinfo', [line.slice('ready '.length)]);
  t.not((await run('nbdinfo', [`nbd+unix:///a?socket=${at('only-b.sock')}`])).status, 0);
  t.not((await run('nbdinfo', [`nbd://127.0.0.1:${own}/b`])).status, 0);
  const io = ['qemu-io', '-f', 'raw', '-c'] as const;
  await must(io[0], [...io.slice(1), 'write -P 5 0 64k', `nbd+unix:///b?socket=${at('only-b.sock')}`]);
  await must(io[0], [...io.slice(1), 'read -P 5 0 64k', `nbd://127.0.0.1:${port}/b`]);
  t.match(await mustCowbell(['status', at('a')]), /^served: +yes$/m);

  const process = `/proc/${server.child.pid}`;
  for (const descriptor of ['3', '4', '5']) {
    t.match(readlinkSync(`${process}/fd/${descriptor}`), /^socket:/);
    const flags = /^flags:\s+(\d+)$/m.exec(readFileSync(`${process}/fdinfo/${descriptor}`, 'utf8'))?.[1];
    t.ok(Number.parseInt(flags ?? '0', 8) & 0o2_000_000, `descriptor ${descriptor} closes on exec`);
  }
  t.equal((await server.stop()).status, 0);
  t.ok(statSync(at('handed.sock')).isSocket(), 'a socket that it did not bind is not removed');
  t.notOk(readdirSync(at('a')).includes('nbd.sock'), 'its own is');
});

t.test('what cannot be listened on is refused, and so is a name that nobody has', async (t) => {
  const at = await makeVolumes(t, ['vol']);
  const serve = (socket: string, ...words: string[]) =>
    run(PYTHON, ['-c', PARENT, socket, '--', ...COWBELL, 'serve', at('vol'), ...words]);
  for (const [socket, found] of [
    ['udp:', 'a socket that does not listen for streams'],
    ['unbound:', 'a socket that does not listen for streams'],
    ['pipe:', 'ENOTSOCK'],
  ] as const) {
    const { status, stderr, stdout } = await serve(socket);
    t.equal(status, 1, socket);
    t.match(
      stderr,
      new RegExp(`^cowbell: Cannot listen on descriptor 3: ${found}.*wanted a Unix or TCP socket`),
    );
    t.equal(stdout, '');
  }
  const unknown = await serve(`unix:nbd=lost@${at('x.sock')}`);
  t.equal(unknown.status, 2);
  t.match(unknown.stderr, /^cowbell: Cannot serve only 'lost' on a socket: .* wanted vol\n$/);
  for (const option of ['--socket', '--listen']) {
    const place = option === '--socket' ? at('y.sock') : '127.0.0.1:0';
    t.equal((await cowbell(['serve', at('vol'), option, `${place}=vol,lost`])).status, 2, option);
    t.equal((await cowbell(['serve', at('vol'), option, `${place}=`])).status, 2, option);
  }
  t.strictSame(
    readdirSync(at('vol')).filter((name) => name.endsWith('.sock')),
    [],
  );
});
