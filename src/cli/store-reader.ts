/**
 * The program of the process that reads a set of a store for the one that serves it.
 *
 * It has the server's priority, since clients wait for it. Ctrl-C and SIGTERM reach all processes of a group or a
 * service; the parent decides what they mean, and answers what is in flight first. When the parent goes, so does it.
 */

import { runStoreReader } from '../daemon/index.ts';
import { EXIT } from './exit.ts';
import { chainReaderPath } from './worker-path.ts';

process.on('SIGINT', () => undefined);
process.on('SIGTERM', () => undefined);
process.on('disconnect', () => process.exit(EXIT.done));

await runStoreReader(
  {
    send: (message) =>
      new Promise((resolve) => {
        // A message that cannot be sent has lost its parent, and `disconnect` follows.
        process.send?.(message, undefined, {}, () => resolve());
      }),
    onMessage: (listener) => process.on('message', listener),
  },
  chainReaderPath(),
);
process.exit(EXIT.done);
