/** `cowbell serve`: the serving process, until Ctrl-C or SIGTERM. */

import { type FurtherListener, Serving, type ServingTls } from '../../daemon/index.ts';
import { absolutePath, readListen, readRestriction, several } from '../arguments.ts';
import type { AddCommand, CommandContext, GlobalOptions } from '../command.ts';
import { storeReaderPath, workerPath } from '../worker-path.ts';

interface Options extends GlobalOptions {
  readonly volume: readonly string[];
  readonly socket: readonly string[] | undefined;
  readonly listen: readonly string[] | undefined;
  readonly tls: string | undefined;
  readonly tlsMode: ServingTls['policy'] | undefined;
  readonly tlsVerifyPeer: 'yes' | 'no' | undefined;
  readonly readOnly: boolean;
}

export const addServe: AddCommand = (parser, run) =>
  parser.command(
    'serve <volume..>',
    'Serve volumes over NBD until Ctrl-C or SIGTERM',
    (command) =>
      command
        .positional('volume', {
          type: 'string',
          array: true,
          demandOption: true,
          describe:
            'Directories of volumes; each gets <volume>/nbd.sock, and its base name is the export name',
        })
        .option('socket', {
          type: 'string',
          array: true,
          requiresArg: true,
          describe: 'Also listen on the Unix socket <path>, for all volumes, or <path>=<name>,... for some',
        })
        .option('listen', {
          type: 'string',
          array: true,
          requiresArg: true,
          describe:
            'Also listen on <host:port>, for all volumes, or <host:port>=<name>,... for some; without encryption unless --tls is given; port 0 picks one',
        })
        .option('tls', {
          type: 'string',
          requiresArg: true,
          describe:
            'Encrypt the sockets of --socket and --listen with the certificates and keys in this directory',
        })
        .option('tls-mode', {
          choices: ['required', 'optional'] as const,
          requiresArg: true,
          describe: 'Whether clients without TLS are refused there; default required',
        })
        .option('tls-verify-peer', {
          choices: ['yes', 'no'] as const,
          requiresArg: true,
          describe: 'Whether clients must show a certificate signed by ca-cert.pem; default yes',
        })
        .implies({ 'tls-mode': 'tls', 'tls-verify-peer': 'tls' })
        .option('read-only', { type: 'boolean', default: false, describe: 'Refuse writes' })
        .example('$0 serve /srv/vol', 'Only on /srv/vol/nbd.sock')
        .example('$0 serve /srv/a /srv/b --listen 127.0.0.1:10809', 'Two volumes over TCP too')
        .example('$0 serve /srv/a /srv/b --listen 127.0.0.1:10809=a', 'Only the first over TCP')
        .example('$0 serve /srv/vol --listen 0.0.0.0:10809 --tls /etc/pki/cowbell', 'Over TCP with TLS')
        .epilogue(
          'Sockets handed over by systemd (socket activation) are served like those of --socket and --listen.',
        ),
    (options) => run<Options>(options, serve),
  );

async function serve(context: CommandContext, options: Options): Promise<void> {
  const { output, signal, directory } = context;
  const serving = await Serving.start({
    volumes: options.volume.map((volume) => absolutePath('The volume', volume, directory)),
    listeners: [
      ...several(options.socket).map((text) => socketListener(text, directory)),
      ...several(options.listen).map(tcpListener),
      ...context.takeHandedSockets(),
    ],
    tls: tlsOf(options, directory),
    readOnly: options.readOnly,
    clock: context.clock,
    workerPath: workerPath(),
    readerPath: storeReaderPath(),
    warn: (sentence) => output.warn(sentence),
  });
  try {
    for (const uri of serving.uris) output.report({ event: 'ready', uri }, `ready ${uri}`);
    await aborted(signal);
  } finally {
    await serving.stop();
  }
}

function tlsOf(options: Options, directory: string): ServingTls | undefined {
  if (options.tls === undefined) return undefined;
  return {
    directory: absolutePath('--tls', options.tls, directory),
    policy: options.tlsMode ?? 'required',
    verifyPeer: options.tlsVerifyPeer !== 'no',
  };
}

function socketListener(text: string, directory: string): FurtherListener {
  const { place, exports } = readRestriction('--socket', text);
  return { place: { kind: 'unix', path: absolutePath('--socket', place, directory) }, exports };
}

function tcpListener(text: string): FurtherListener {
  const { place, exports } = readRestriction('--listen', text);
  return { place: { kind: 'tcp', ...readListen(place) }, exports };
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
}
