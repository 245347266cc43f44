/**
 * A raw file behind Cowbell's own NBD server without the volume in between: `bare-server.ts FILE SOCKET`, for
 * `bench/snapshot`, until a signal ends it. What a volume costs is the difference to `cowbell serve`; so this runs the
 * built code, as that does, in a process of its own.
 */

const [path = '', socket = ''] = process.argv.slice(2);

const built = (room: string): string => new URL(`../dist/${room}/index.js`, import.meta.url).href;
const { openFileDevice }: typeof import('../src/device/index.ts') = await import(built('device'));
const { NbdServer }: typeof import('../src/nbd/index.ts') = await import(built('nbd'));

const device = await openFileDevice({ path, readOnly: false, syncName: 'home', lock: 'exclusive' });
const server = new NbdServer({
  exports: [{ name: 'bare', description: '', device, readOnly: false, multiConn: true }],
});
await server.listen({ kind: 'unix', path: socket });
console.log('ready');
